# syntax=docker/dockerfile:1
# Two stages on Debian 12: build with every -dev package, run with the shared libraries alone.
#
#   docker build -t mneme --build-arg REVISION=$(git rev-parse HEAD) .
#   docker run -p 7447:7447 --stop-timeout 30 -v mneme-data:/var/lib/mneme -v $PWD/models:/models:ro mneme \
#     --model smollm2=/models/SmolLM2-135M-Instruct.Q4_1.gguf
#
# With --build-arg BACKEND=cuda it has the CUDA backend too; docker run --gpus all then takes it to the GPU, with the
# driver that the host's container toolkit brings. tests/deploy/try_image.sh builds and runs it without a daemon.
#
# deploy/README.md has the rest: probes, drain, Kubernetes, proxies.
FROM debian:12-slim AS build
ARG BACKEND=cpu
WORKDIR /src
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh build && if [ "$BACKEND" = cuda ]; then deploy/install_packages.sh cuda; fi
COPY . .
RUN case "$BACKEND" in cpu) preset=release plugin= ;; cuda) preset=cuda plugin=mneme_cuda ;; \
      *) echo "BACKEND is cpu or cuda, not $BACKEND" >&2; exit 2 ;; esac \
 && cmake --preset $preset -DMNEME_BUILD_TESTS=OFF -DMNEME_BUILD_BENCH=OFF \
 && cmake --build --preset $preset --target mneme-server mneme $plugin \
 && cmake --install build-$preset --prefix /opt/mneme --strip --component runtime \
 && deploy/collect_licences.sh /opt/mneme/share/doc/mneme/third_party build-$preset \
      build-$preset/server/mneme-server build-$preset/client/mneme

FROM debian:12-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Mneme" \
      org.opencontainers.image.description="Language models with persistent sessions of fixed size, over gRPC" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:12-slim"
COPY deploy/install_packages.sh /tmp/
RUN /tmp/install_packages.sh runtime && rm -rf /tmp/install_packages.sh /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /opt/mneme /usr/local
# Numbers, so that Kubernetes' runAsNonRoot can see that it is nobody special.
RUN groupadd --system --gid 10001 mneme \
 && useradd --system --uid 10001 --gid 10001 --no-log-init --home-dir /var/lib/mneme --create-home mneme
USER 10001:10001
VOLUME /var/lib/mneme
ENV MNEME_STORE_PATH=/var/lib/mneme \
    MNEME_LISTEN_ADDRESS=0.0.0.0:7447 \
    MNEME_LISTEN_METRICS_ADDRESS=0.0.0.0:7448 \
    MNEME_LISTEN_INSECURE=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 7447 7448
# A large checkpoint on a slow disk takes its time to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
  CMD mneme status --server "127.0.0.1:${MNEME_LISTEN_ADDRESS##*:}" --connect-timeout 2
# SIGTERM drains: 5 s of drain.pre_stop_delay, then at most 20 s of drain.timeout. Kubernetes waits 30 s
# before SIGKILL; docker stop 10 s, unless --stop-timeout or compose's stop_grace_period says 30.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mneme-server"]
