// SPDX-License-Identifier: Apache-2.0

// A conversation that survives its server: stream, go on after a restart, fork, rewind, cancel.
//
//	conversation [HOST:PORT]
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	pb "mneme/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

var generation pb.GenerationClient

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// stream prints the output of one turn as it comes and returns its Final: by then the turn is on the
// server's disk. onDelta, if given, is called after each delta.
func stream(ctx context.Context, request *pb.GenerateRequest, onDelta func(started *pb.GenerateResponse_Started)) *pb.GenerateResponse_Final {
	events, err := generation.Generate(ctx, request)
	must(err)
	var started *pb.GenerateResponse_Started
	for {
		response, err := events.Recv()
		// The server went away. A turn with ExpectedVersion is safe to send again: it happens once, or
		// ABORTED VERSION_MISMATCH says that it has happened, and ReadTranscript what was said.
		if status.Code(err) == codes.Unavailable && request.ExpectedVersion != 0 {
			time.Sleep(500 * time.Millisecond)
			return stream(ctx, request, onDelta)
		}
		must(err)
		switch event := response.Event.(type) {
		case *pb.GenerateResponse_Started_:
			started = event.Started
		case *pb.GenerateResponse_Delta_:
			fmt.Print(event.Delta.Text)
			if onDelta != nil {
				onDelta(started)
			}
		case *pb.GenerateResponse_Final_:
			fmt.Println()
			return event.Final
		}
	}
}

func turn(session *pb.Session, text string) *pb.GenerateRequest {
	return &pb.GenerateRequest{
		Session:         session.Name,
		Input:           &pb.GenerateRequest_Text{Text: text},
		MaxOutputTokens: proto.Int32(24),
	}
}

func main() {
	server := "127.0.0.1:7447"
	if len(os.Args) > 1 {
		server = os.Args[1]
	}
	// While a server starts, wait for it instead of failing.
	connection, err := grpc.Dial(server, grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(err)
	defer connection.Close()
	sessions := pb.NewSessionsClient(connection)
	generation = pb.NewGenerationClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	// A session: a name, a version and one state of fixed size. The server chooses the name.
	session, err := sessions.CreateSession(ctx, &pb.CreateSessionRequest{Parent: "tenants/default"})
	must(err)
	fmt.Println("session", session.Name)
	first := stream(ctx, turn(session, "The sea was calm that morning, and"), nil)
	fmt.Printf("[version %d, %d tokens]\n", first.Version, first.PositionTokens)

	fmt.Println("You may restart the server now. Press Enter.")
	bufio.NewReader(os.Stdin).ReadString('\n')
	next := turn(session, " Then the wind")
	next.ExpectedVersion = first.Version
	second := stream(ctx, next, nil)
	fmt.Printf("[version %d, read again: %d tokens]\n", second.Version, second.Usage.RecomputedTokens)

	// Two answers from the same point. A fork copies a name, however much the session has read.
	forks, err := sessions.ForkSession(ctx, &pb.ForkSessionRequest{Name: session.Name, Count: 2})
	must(err)
	for seed, fork := range forks.Sessions {
		fmt.Printf("answer %d:\n", seed)
		request := turn(fork, " and so")
		request.Sampling = &pb.Sampling{Seed: proto.Uint64(uint64(seed))}
		stream(ctx, request, nil)
	}

	// A turn that went wrong is taken back.
	stream(ctx, turn(session, " (nonsense)"), nil)
	rewound, err := sessions.RewindSession(ctx, &pb.RewindSessionRequest{
		Name:   session.Name,
		Target: &pb.RewindSessionRequest_PositionTokens{PositionTokens: second.PositionTokens},
	})
	must(err)
	fmt.Printf("rewound to %d tokens\n", rewound.Session.PositionTokens)

	// Cancelled after three deltas. DISCARD: the session is as if it had never been asked.
	endless := turn(session, " for ever")
	endless.MaxOutputTokens = proto.Int32(4096)
	endless.IgnoreEos = true
	endless.CommitPolicy = pb.GenerateRequest_DISCARD
	deltas := 0
	final := stream(ctx, endless, func(started *pb.GenerateResponse_Started) {
		if deltas++; deltas == 3 {
			_, err := generation.CancelGeneration(ctx, &pb.CancelGenerationRequest{Name: started.Generation})
			must(err)
		}
	})
	fmt.Println("ended by", final.FinishReason)
	now, err := sessions.GetSession(ctx, &pb.GetSessionRequest{Name: session.Name})
	must(err)
	fmt.Printf("still at %d tokens\n", now.PositionTokens)

	for _, each := range append(forks.Sessions, session) {
		_, err := sessions.DeleteSession(ctx, &pb.DeleteSessionRequest{Name: each.Name})
		must(err)
	}
}
