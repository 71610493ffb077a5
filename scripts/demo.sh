#!/usr/bin/env bash
# The demo: real data, a conflict, a kill, and the proof that nothing acknowledged is lost.
#
#   make demo          or    PAIRDB=path/to/pairdb scripts/demo.sh
#
# It works in a temporary directory, on ports the system chooses, and cleans up after itself.
# Exit code 0 and a last line that begins with PASS: every comparison held. Otherwise FAIL and 1.
# `KEEP=1` keeps the directory.

set -euo pipefail
export LC_ALL=C # sort and comm compare bytes

cd "$(dirname "$0")/.."
PAIRDB=${PAIRDB:-target/release/pairdb}
DATA=data/cities.csv.gz
CHANGED=100          # places to update, and as many others to delete
KILL_AFTER=20000     # acknowledged records of the second import
WAIT_SECONDS_MAX=60  # for any one thing

work=$(mktemp -d "${TMPDIR:-/tmp}/pairdb-demo.XXXXXX")
node=""
importer=""
exec {never}<> <(:) # nothing is ever written here: a read from it is a wait

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }

fail() {
    printf '\nFAIL: %s\n' "$*"
    if [[ -s $work/node.log ]]; then
        printf '%s\n' "last lines of the node's log:"
        tail -n 5 "$work/node.log"
    fi
    exit 1
}

finish() {
    local code=$?
    trap - EXIT
    for pid in $importer $node; do
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [[ -n ${KEEP:-} ]]; then
        note "kept: $work"
    else
        rm -rf "$work"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Runs `$@` until it succeeds, for a bounded time.
wait_until() {
    local end=$((SECONDS + WAIT_SECONDS_MAX))
    until "$@"; do
        ((SECONDS < end)) || return 1
        read -r -t 0.05 -u "$never" || true
    done
}

start_node() {
    rm -f "$work/ready.json"
    "$PAIRDB" serve --data-dir "$work/data" --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0 \
        --admin-listen 127.0.0.1:0 --ready-file "$work/ready.json" >>"$work/node.log" 2>&1 &
    node=$!
    node_is_ready_or_dead() { [[ -s $work/ready.json ]] || ! kill -0 "$node" 2>/dev/null; }
    wait_until node_is_ready_or_dead || fail "the node was not ready in $WAIT_SECONDS_MAX s"
    [[ -s $work/ready.json ]] || fail "the node did not start"
    local listen
    listen=$(sed -n 's/.*"listen": *"\([^"]*\)".*/\1/p' "$work/ready.json" | head -n 1)
    [[ -n $listen ]] || fail "the ready file names no address"
    export PAIRDB_ENDPOINT="http://$listen"
}

# Shows a command as a user would type it, then runs it.
run() {
    local shown="   \$ pairdb" arg
    for arg in "$@"; do
        if [[ $arg == *[[:space:]]* ]]; then shown+=" '$arg'"; else shown+=" $arg"; fi
    done
    printf '%s\n' "$shown"
    "$PAIRDB" "$@"
}

count() { wc -l <"$1" | tr -d ' '; }
cities() { gzip -dc "$DATA"; }
keys() { "$PAIRDB" keys --tenant "$1" | sort; }
export_rows() { "$PAIRDB" export --tenant "$1" --format jsonl 2>/dev/null | sort; }

# The lines of sorted file $1 that sorted file $2 does not have must be none.
nothing_missing() {
    local missing
    missing=$(comm -23 "$1" "$2" | wc -l | tr -d ' ')
    [[ $missing == 0 ]] || fail "$3: $missing missing, first $(comm -23 "$1" "$2" | head -n 1)"
}

same() { cmp -s "$1" "$2" || fail "$3: $(diff "$1" "$2" | head -n 3 | tr '\n' ' ')"; }

# --- what must come out -----------------------------------------------------------------------

# The key column; only fields with a comma are quoted, and none holds a quote.
cities | tail -n +2 | sed -E -e 's/^"([^"]*)",.*/\1/' -e t -e 's/,.*//' | sort >"$work/source.keys"
records=$(count "$work/source.keys")
# Every so-and-so-many-th place is updated, its neighbour deleted.
step=$((records / CHANGED))
awk -v s="$step" -v n="$CHANGED" 'NR % s == 1 && ++c <= n' "$work/source.keys" >"$work/updated.keys"
awk -v s="$step" -v n="$CHANGED" 'NR % s == 2 && ++c <= n' "$work/source.keys" >"$work/deleted.keys"

say "A node on an empty directory"
start_node
note "serving at $PAIRDB_ENDPOINT"

say "Import $records places of the world (GeoNames, see data/README.md)"
run tenant create cities --mode last-write-wins
cities | run import --tenant cities --format csv --key-column id -
keys cities >"$work/cities.keys"
same "$work/source.keys" "$work/cities.keys" "the keys are not those of the file"
note "stored keys and keys of the file: the same $records"
export_rows cities >"$work/cities.first"

say "Read some back"
for key in FR/Lyon JP/Kyoto BR/Salvador; do
    run get --tenant cities "$key"
    echo
done

say "Update $CHANGED places, delete $CHANGED others"
while IFS= read -r key; do
    "$PAIRDB" put --tenant cities "$key" "updated: $key" >/dev/null </dev/null
done <"$work/updated.keys"
while IFS= read -r key; do
    "$PAIRDB" delete --tenant cities "$key" >/dev/null </dev/null
done <"$work/deleted.keys"
keys cities >"$work/cities.keys"
comm -23 "$work/source.keys" "$work/deleted.keys" >"$work/expected.keys"
same "$work/expected.keys" "$work/cities.keys" "the wrong keys are gone"
export_rows cities >"$work/cities.before"
comm -12 "$work/cities.first" "$work/cities.before" >"$work/untouched"
untouched=$(count "$work/untouched")
((untouched == records - 2 * CHANGED)) || fail "$untouched places are as they were imported"
[[ $(grep -c '"value":"updated: ' "$work/cities.before") == "$CHANGED" ]] || fail "updates are gone"
note "left: $(count "$work/cities.keys"), $untouched of them as they were imported"

say "Two writers who have not seen each other"
run tenant create notes --mode siblings
run put --tenant notes plan 'meet on Monday'
run put --tenant notes plan 'meet on Friday'
note "Neither is lost. A reader sees both, and the context that names them:"
run get --tenant notes plan --output json | tee "$work/conflict.json"
echo
siblings=$(grep -o '"value' "$work/conflict.json" | wc -l | tr -d ' ')
[[ $siblings == 2 ]] || fail "expected 2 siblings, found $siblings"
context=$(sed -n 's/.*"context": *"\([^"]*\)".*/\1/p' "$work/conflict.json" | head -n 1)
[[ -n $context ]] || fail "the answer holds no context"
note "A write that gives the context back replaces what it has seen:"
run put --tenant notes plan 'meet on Wednesday' --context="$context"
run get --tenant notes plan
echo
[[ $("$PAIRDB" get --tenant notes plan) == 'meet on Wednesday' ]] || fail "still in conflict"

say "kill -9 in the middle of a second import"
run tenant create second --mode last-write-wins
: >"$work/acked"
(cities | "$PAIRDB" import --tenant second --format csv --key-column id \
    --acked-file "$work/acked" --timeout 5s - >"$work/import.log" 2>&1) &
importer=$!
enough_or_over() {
    (($(count "$work/acked") >= KILL_AFTER)) || ! kill -0 "$importer" 2>/dev/null
}
wait_until enough_or_over || fail "the second import did not get to $KILL_AFTER records"
kill -0 "$importer" 2>/dev/null || fail "the second import was over before the kill"
kill -9 "$node"
wait "$node" 2>/dev/null || true
node=""
importer_is_over() { ! kill -0 "$importer" 2>/dev/null; }
wait_until importer_is_over || fail "the import did not give up after the node was gone"
if wait "$importer"; then fail "the import claims success, though its node was killed"; fi
importer=""
sort "$work/acked" >"$work/acked.keys"
acked=$(count "$work/acked.keys")
((acked < records)) || fail "the node was killed too late"
note "the node is dead; it had acknowledged $acked of $records records"

say "Start it again and compare"
start_node
export_rows cities >"$work/cities.after"
same "$work/cities.before" "$work/cities.after" "the first import changed"
note "first import:  $(count "$work/cities.after") rows, byte for byte as before the kill"
keys cities | comm -12 - "$work/deleted.keys" >"$work/back"
[[ ! -s $work/back ]] || fail "deleted, but back: $(head -n 1 "$work/back")"
note "deleted:       $CHANGED, none is back"
note "updated:       $CHANGED, as they were left"
keys second >"$work/second.keys"
nothing_missing "$work/acked.keys" "$work/second.keys" "acknowledged, but not stored"
nothing_missing "$work/second.keys" "$work/source.keys" "stored, but never sent"
export_rows second >"$work/second.rows"
nothing_missing "$work/second.rows" "$work/cities.first" "stored, but not as it was sent"
note "second import: all $acked acknowledged records are there ($(count "$work/second.keys") stored)"
[[ $("$PAIRDB" get --tenant notes plan) == 'meet on Wednesday' ]] || fail "the note is gone"
note "the note:      meet on Wednesday"

say "Finish the second import"
cities | run import --tenant second --format csv --key-column id -
export_rows second >"$work/second.rows"
same "$work/cities.first" "$work/second.rows" "the second import is not the file"

printf '\nPASS: %s records imported, %s acknowledged before kill -9, none missing, none back\n' \
    "$records" "$acked"
