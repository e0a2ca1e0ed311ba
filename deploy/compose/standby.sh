#!/bin/bash
# A standby: a copy of the primary the first time, its log from then on.
set -euo pipefail
if [[ ! -s $PGDATA/PG_VERSION ]]; then
  pg_basebackup -h primary -U mneme -D "$PGDATA" -R -X stream -c fast
  chmod 700 "$PGDATA"
fi
exec postgres -c max_connections=200
