/* The lease protocol of server/core/lease_table.h, for Spin: two servers, one session, a store.
 *
 * The store does one transaction at a time, and compares versions of records: that is all it promises. Time is not
 * modelled but as the worst there can be: a lease may be seen as ended at any moment, also while its owner renews it,
 * and a server may stand still for as long as it likes between any two of its steps, or die and start again.
 *
 *   spin -a lease.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan          no fault
 *   spin -a -DNO_FENCE lease.pml ...                                    one that is found: a late write counts
 *   spin -a -DSTALE_RENEWAL lease.pml ...                               one that is found: who lost it renews it
 */
#define SERVERS 2
#define MOST 4  /* leases taken in all, so that the search ends */
#define LAST 12 /* version of the lease's record, likewise */
#define NOBODY 255

/* Records of the store. */
byte lease_version, lease_epoch, lease_owner = NOBODY;
byte session_version;
byte session_epoch; /* that the last commit was made under */

byte taken;

/* A transaction puts the lease's record if it is as `known`; the session's too if `base` is its version. */
#define LEASE_IS(known) (lease_version == known)

proctype Server(byte me) {
  byte known, epoch, base;

take:
  /* Reads the record: somebody else's lease must be seen as ended, which clocks may claim at any time. */
  do
  :: taken == MOST -> goto end
  :: taken < MOST ->
    atomic { known = lease_version; epoch = lease_epoch + 1 }
    /* Takes it, unless it has changed since. */
    atomic {
      if
      :: LEASE_IS(known) && taken < MOST ->
        lease_version++; lease_owner = me; lease_epoch = epoch; known = lease_version; taken++; break
      :: else -> skip
      fi
    }
  od;

  base = session_version;

turn:
  /* Renewals, each of which may be late. */
  do
  :: atomic {
      if
#ifdef STALE_RENEWAL
      :: lease_version < LAST -> lease_version++; lease_owner = me; known = lease_version
      :: else -> skip
#else
      :: LEASE_IS(known) && lease_version < LAST -> lease_version++; known = lease_version
      :: !LEASE_IS(known) -> goto lost
      :: else -> skip
#endif
      fi
    }
  :: break
  :: goto take /* died, and started again: nothing is remembered */
  od;

  /* A commit: session and lease in one transaction, which gives the lease back, or, of an ingest, renews it. */
  atomic {
    if
#ifdef NO_FENCE
    :: base == session_version ->
#else
    :: LEASE_IS(known) && base == session_version ->
#endif
      /* Only who took the lease last may write: whoever was taken over is refused. */
      assert(lease_epoch == epoch);
      /* None goes on from what a later one has left behind. */
      assert(session_epoch <= epoch);
      session_version++; session_epoch = epoch; lease_version++;
      if
      :: lease_owner = NOBODY; goto take
      :: lease_version < LAST -> known = lease_version; base = session_version; goto turn
      fi
    :: else -> goto lost
    fi
  }

lost:
  /* Refused: the turn ends with LEASE_LOST, the session is what it was. */
  goto take;
end:
  skip
}

init {
  byte i = 0;
  atomic { do :: i < SERVERS -> run Server(i); i++ :: else -> break od }
}
