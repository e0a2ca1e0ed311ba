#!/bin/bash
# Run once, by the image, when the database has been made. From the next start on a commit waits for a standby, and
# standbys of this network may read the log.
set -euo pipefail
echo "host replication all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'"
