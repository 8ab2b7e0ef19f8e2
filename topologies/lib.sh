# What the stories' `run` scripts share. A script declares `port`, a port on 127.0.0.1 for each server that the
# story talks to, defines `processes` and `show`, and ends with `story "$@"`.
#
#   ./run             processes on this machine, in a temporary folder; shows the story, and stops them
#   ./run --keep      the same, and goes on until Ctrl-C
#   ./run --compose   the same story from compose.yaml; with --keep behind it, until Ctrl-C
#   ./run --kubernetes  what API servers do on top, where the story has that; also with the others
#   ./run --tracing     a request on its way, where the story has that; also with the others
#
# The story is on standard output, all else on standard error.
#
# Programs: the node is $PLEACH, or target/release/pleach, or target/debug/pleach of this repository. etcdctl, etcd,
# kube-apiserver and kubectl are $ETCDCTL, $ETCD, $KUBE_APISERVER and $KUBECTL, or those on the PATH, or what
# `tests/peers/build` has built of them. PostgreSQL and MariaDB are Debian's packages `postgresql` and
# `mariadb-server`; sqlite3 reads copies of SQLite files.

set -Eeuo pipefail

story_folder=$(cd "$(dirname "$0")" && pwd)
story_name=$(basename "$story_folder")
repository=$(cd "$story_folder/../.." && pwd)
work=""
mode=processes
keeps=no
has_kubernetes=no
has_tracing=no
started=() # ids of processes, in the order of their start
declare -A port

note() { printf '%s\n' "$*" >&2; }

fail() {
    note "$story_name: $*"
    exit 1
}

# === Programs ===

# The first of these that can be run.
first_of() {
    local candidate
    for candidate in "$@"; do
        if [ -n "$candidate" ] && command -v "$candidate" > /dev/null; then
            realpath "$(command -v "$candidate")"
            return
        fi
    done
    return 1
}

# peer VARIABLE NAME: what the variable names, or else what is on the PATH, or was built for the tests.
peer() {
    if [ -n "${!1:-}" ]; then
        first_of "${!1}" || fail "$1 names no program: ${!1}"
    else
        first_of "$2" "$repository/target/peers/$2" ||
            fail "$2 is neither on the PATH nor named in $1; \`tests/peers/build $2\` builds it"
    fi
}

find_programs() {
    if [ -n "${PLEACH:-}" ]; then
        pleach=$(first_of "$PLEACH") || fail "PLEACH names no program: $PLEACH"
    else
        pleach=$(first_of "$repository/target/release/pleach" "$repository/target/debug/pleach") ||
            fail "there is no node: run \`cargo build --release\`, or name one in PLEACH"
    fi
    etcdctl=$(peer ETCDCTL etcdctl)
}

compose() {
    if docker compose version > /dev/null 2>&1; then
        docker compose --project-name "pleach-$story_name" --file "$story_folder/compose.yaml" "$@"
    else
        docker-compose --project-name "pleach-$story_name" --file "$story_folder/compose.yaml" "$@"
    fi
}

# === Processes ===

# wait_for SECONDS WHAT COMMAND…
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        ((SECONDS < end)) || fail "$what: not within its time"
        sleep 0.1
    done
}

# start NAME COMMAND…: in a folder of its own, with its log beside it.
start() {
    local name=$1
    shift
    mkdir -p "$work/$name"
    (cd "$work/$name" && exec "$@") > "$work/$name.log" 2>&1 < /dev/null &
    started+=($!)
    note "started $name (process $!)"
}

stop() {
    local id=$1 end=$((SECONDS + 20))
    kill "$id" 2> /dev/null || return 0
    while kill -0 "$id" 2> /dev/null && ((SECONDS < end)); do sleep 0.1; done
    kill -KILL "$id" 2> /dev/null || true
    wait "$id" 2> /dev/null || true
}

finish() {
    local status=$? at
    trap - EXIT INT TERM
    # Who interrupts it does not ask why.
    local is_failure=no
    case $status in 0 | 130 | 143) ;; *) is_failure=yes ;; esac
    if [ "$mode" = compose ]; then
        [ "$is_failure" = no ] || compose logs --no-color --tail 20 >&2 || true
        compose "${profiles[@]}" down --volumes --remove-orphans >&2 || true
    fi
    for ((at = ${#started[@]} - 1; at >= 0; at--)); do stop "${started[at]}"; done
    if [ -n "$work" ] && [ "$is_failure" = yes ]; then
        for log in "$work"/*.log; do
            [ -e "$log" ] && note "--- $(basename "$log")" && tail -n 8 "$log" >&2
        done
    fi
    [ -z "$work" ] || rm -rf -- "$work"
    exit "$status"
}

# Database servers refuse to run as root: makes a server's folder, which is the user's, and sets `become` to the
# words that run a command as that user.
become=()
folder_of() {
    mkdir -p "$work/$2"
    become=()
    if [ "$(id -u)" = 0 ]; then
        chown "$1" "$work/$2"
        become=(setpriv --reuid="$1" --regid="$1" --init-groups --)
    fi
}

# node NAME FLAGS…: a node on its port of 127.0.0.1, with its data in its folder.
node() {
    local name=$1
    shift
    start "$name" "$pleach" serve --name "$name" --data-dir data \
        --listen-client-urls "http://127.0.0.1:${port[$name]}" "$@"
    wait_for 30 "the node $name" "$pleach" tree "http://127.0.0.1:${port[$name]}"
}

# etcd_server NAME [ADDRESS]
etcd_server() {
    local name=$1 address=${2:-127.0.0.1} program
    program=$(peer ETCD etcd)
    start "$name" "$program" --name "$name" --data-dir data \
        --listen-client-urls "http://$address:${port[$name]}" --advertise-client-urls "http://$address:${port[$name]}" \
        --listen-peer-urls http://127.0.0.1:0 --auto-compaction-retention 1h
    wait_for 30 "etcd $name" "$etcdctl" --endpoints "http://$address:${port[$name]}" endpoint health
}

# postgres_server NAME PASSWORD [ADDRESS]: its administrator is `postgres`, with that password.
postgres_server() {
    local name=$1 password=$2 address=${3:-127.0.0.1} programs
    programs=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    [ -x "$programs/initdb" ] || fail "PostgreSQL is missing: install the package postgresql"
    folder_of postgres "$name"
    printf '%s\n' "$password" > "$work/$name/password" # a demo password, which others may read
    (cd "$work/$name" && "${become[@]}" "$programs/initdb" --pgdata=data --username=postgres --encoding=UTF8 \
        --auth-local=trust --auth-host=scram-sha-256 --pwfile=password --no-instructions) > "$work/$name.log" 2>&1
    printf 'host all all all scram-sha-256\n' >> "$work/$name/data/pg_hba.conf"
    start "$name" "${become[@]}" "$programs/postgres" -D data -c listen_addresses="$address" \
        -c port="${port[$name]}" -c unix_socket_directories="$work/$name" -c dynamic_shared_memory_type=mmap
    wait_for 30 "PostgreSQL $name" psql -h "$work/$name" -p "${port[$name]}" -U postgres -c 'SELECT 1'
}

# mariadb_server NAME PASSWORD [ADDRESS]: its administrator is `root`, with that password over TCP.
mariadb_server() {
    local name=$1 password=$2 address=${3:-127.0.0.1} server
    server=$(PATH=$PATH:/usr/sbin first_of mariadbd) || fail "MariaDB is missing: install the package mariadb-server"
    folder_of mysql "$name"
    "${become[@]}" mariadb-install-db --no-defaults --auth-root-authentication-method=normal --skip-test-db \
        --datadir="$work/$name/data" > "$work/$name.log" 2>&1
    start "$name" "${become[@]}" "$server" --no-defaults --datadir="$work/$name/data" --tmpdir="$work/$name" \
        --socket="$work/$name/socket" --pid-file="$work/$name/pid" --bind-address="$address" \
        --port="${port[$name]}" --skip-name-resolve
    wait_for 30 "MariaDB $name" mariadb --no-defaults --socket="$work/$name/socket" --user=root -e 'SELECT 1'
    # Its own accounts for this machine's addresses have no password, and would go before the one that has.
    mariadb --no-defaults --socket="$work/$name/socket" --user=root \
        -e "DELETE FROM mysql.global_priv WHERE User = 'root' AND Host <> 'localhost'; FLUSH PRIVILEGES;
            CREATE USER root@'%' IDENTIFIED BY '$password'; GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION"
}

# api_server NAME NODE FLAGS…: one on a node. In compose it is a service of the profile `kubernetes`.
api_server() {
    local name=$1 node=$2 program keys=$work/credentials
    shift 2
    kubectl=$(peer KUBECTL kubectl)
    if [ "$mode" = processes ]; then
        program=$(peer KUBE_APISERVER kube-apiserver)
        if [ ! -d "$keys" ]; then
            mkdir "$keys"
            openssl genrsa -out "$keys/sa.key" 2048 2> /dev/null
            openssl rsa -in "$keys/sa.key" -pubout -out "$keys/sa.pub" 2> /dev/null
            echo demo-token,admin,admin,system:masters > "$keys/tokens.csv"
        fi
        start "$name" "$program" --etcd-servers="http://127.0.0.1:${port[$node]}" --secure-port="${port[$name]}" \
            --bind-address=127.0.0.1 --advertise-address=192.0.2.1 --cert-dir=certificates \
            --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$keys/sa.pub" \
            --service-account-signing-key-file="$keys/sa.key" --token-auth-file="$keys/tokens.csv" \
            --authorization-mode=RBAC --service-cluster-ip-range=10.0.0.0/24 \
            --disable-admission-plugins=ServiceAccount "$@"
    fi
    [ "$mode" = processes ] || compose "${profiles[@]}" up -d "$name" >&2
    # Its default namespace is the last thing that a first command needs.
    wait_for 120 "the API server $name" kubectl_quietly_at "$name" get namespace default
}

# topology FILE NAME…: a file of the story for processes, as compose's services have it but for the addresses: `NAME`
# with whatever port is 127.0.0.1 with NAME's port here. Prints its path.
topology() {
    local from=$story_folder/$1 to=$work/$1 name
    shift
    cp "$from" "$to"
    for name in "$@"; do
        sed -i -E "s#([/@(])$name:[0-9]+#\1127.0.0.1:${port[$name]}#" "$to"
    done
    printf '%s\n' "$to"
}

# === What is shown ===

heading() { printf '# %s\n' "$*"; }

# at NAME COMMAND…: prints the command behind the name of the server that it talks to, and what it prints, without
# etcdctl's empty lines.
at() {
    local name=$1 quoted=() word
    shift
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=-]* | '') quoted+=("'$word'") ;;
            *) quoted+=("$word") ;;
        esac
    done
    printf '%s$ %s\n' "$name" "${quoted[*]}"
    quietly_at "$name" "$@" | sed '/^$/d'
}

# The same, and only what the command prints.
quietly_at() {
    local name=$1 url=http://${address:-127.0.0.1}:${port[$1]}
    shift
    case $1 in
        etcdctl) ETCDCTL_ENDPOINTS=$url "$etcdctl" "${@:2}" ;;
        pleach) "$pleach" "${@:2}" "$url" ;;
        *) fail "$1 is nothing that is shown" ;;
    esac
}

# watch_at NAME LINES WORDS…: what a watch prints until it has printed so many lines.
watch_at() {
    local name=$1 lines=$2 id said
    shift 2
    said=$(mktemp "$work/watch.XXXXXX")
    printf '%s$ etcdctl watch %s\n' "$name" "$*"
    ETCDCTL_ENDPOINTS=http://${address:-127.0.0.1}:${port[$name]} "$etcdctl" watch "$@" > "$said" &
    id=$!
    wait_for 20 "the watch" has_lines "$said" "$lines"
    kill "$id"
    wait "$id" 2> /dev/null || true
    sed '/^$/d' "$said"
}

has_lines() { (($(grep -c . "$1") >= $2)); }

# explain KEY TOPOLOGY: the route that a key takes.
explain() {
    printf '$ pleach explain %s --topology %s\n' "$1" "$2"
    "$pleach" explain "$1" --topology "$story_folder/$2"
}

# object NAME KEY: puts the least that an API server takes for an object there.
object() {
    local name=$1 key=$2 of metadata
    case $key in
        /registry/configmaps/*) of='v1 ConfigMap' ;;
        /registry/deployments/*) of='apps/v1 Deployment' ;;
        /registry/events/*) of='v1 Event' ;;
        /registry/leases/*) of='coordination.k8s.io/v1 Lease' ;;
        /registry/namespaces/*) of='v1 Namespace' ;;
        /registry/pods/*) of='v1 Pod' ;;
        /registry/secrets/*) of='v1 Secret' ;;
        /registry/services/specs/*) of='v1 Service' ;;
        /registry/stable.example.com/shirts/*) of='stable.example.com/v1 Shirt' ;;
        *) fail "$key is of no kind that the stories have" ;;
    esac
    metadata="\"name\":\"$(basename "$key")\""
    [ "$of" = 'v1 Namespace' ] || metadata+=",\"namespace\":\"$(basename "$(dirname "$key")")\""
    quietly_at "$name" etcdctl put "$key" \
        "{\"kind\":\"${of#* }\",\"apiVersion\":\"${of% *}\",\"metadata\":{$metadata}}" > /dev/null
}

# keys_in sqlite NODE FILE, keys_in postgres|mariadb SERVER DATABASE [TABLE], keys_in etcd SERVER: the keys that lie
# there, as the database itself says. FILE is what the node calls it.
keys_in() {
    local kind=$1 server=$2 place=${3:-} table=${4:-pleach_key}
    printf '%s:\n' "in $server${place:+, $place}${4:+, table $4}"
    case $kind in
        sqlite) sqlite_keys "$server" "$place" ;;
        postgres) in_postgres "$server" "$place" \
            "SELECT convert_from(name, 'UTF8') FROM $table WHERE version > 0 ORDER BY name" ;;
        mariadb) in_mariadb "$server" "$place" \
            "SELECT CONVERT(name USING utf8mb4) FROM $table WHERE version > 0 ORDER BY name" ;;
        # What the node keeps for itself lies below `pleach.store/`.
        etcd) in_etcd "$server" get '' --from-key --keys-only | grep -v -e '^$' -e '^pleach\.store/' ;;
    esac | sed 's/^/  /'
}

# A copy is read, with the log that belongs to it: the file is its owner's.
sqlite_keys() {
    local server=$1 file=$2 copy container
    command -v sqlite3 > /dev/null || fail "sqlite3 is missing"
    copy=$(mktemp -d "$work/copy.XXXXXX")
    if [ "$mode" = compose ]; then
        container=$(compose ps -q "$server")
        docker cp "$container:/${file#./}" "$copy/db" > /dev/null
        docker cp "$container:/${file#./}-wal" "$copy/db-wal" > /dev/null 2>&1 || true
    else
        # One that does not begin with a slash lies in the node's folder.
        (cd "$work/$server" && cp "$file" "$copy/db" && { [ ! -e "$file-wal" ] || cp "$file-wal" "$copy/db-wal"; })
    fi
    sqlite3 "$copy/db" "SELECT CAST(name AS TEXT) FROM pleach_key WHERE version > 0 ORDER BY name"
}

in_postgres() {
    local server=$1 database=$2 sql=$3
    if [ "$mode" = compose ]; then
        compose exec -T "$server" psql -U postgres -d "$database" -Atc "$sql" < /dev/null
    else
        psql -h "$work/$server" -p "${port[$server]}" -U postgres -d "$database" -Atc "$sql"
    fi
}

in_mariadb() {
    local server=$1 database=$2 sql=$3
    if [ "$mode" = compose ]; then
        compose exec -T "$server" mariadb --user=root --password=passwd -BN -D "$database" -e "$sql" < /dev/null
    else
        mariadb --no-defaults --socket="$work/$server/socket" --user=root -BN -D "$database" -e "$sql"
    fi
}

in_etcd() {
    local server=$1
    shift
    if [ "$mode" = compose ]; then
        compose exec -T "$server" etcdctl "$@" < /dev/null
    else
        "$etcdctl" --endpoints "http://${address:-127.0.0.1}:${port[$server]}" "$@"
    fi
}

# As `at`, with kubectl, in the story's folder.
kubectl_at() {
    printf '%s$ kubectl %s\n' "$1" "${*:2}"
    kubectl_quietly_at "$@" | sed 's/ *$//'
}

kubectl_quietly_at() {
    cd "$story_folder"
    HOME=$work "$kubectl" --server "https://127.0.0.1:${port[$1]}" --token demo-token --insecure-skip-tls-verify \
        "${@:2}"
}

# What a server has said.
log_of() {
    if [ "$mode" = compose ]; then
        compose "${profiles[@]}" logs --no-color --no-log-prefix "$1"
    else
        cat "$work/$1.log"
    fi
}

# The whole tree is there: nothing in it is away.
tree_is_whole() {
    local tree
    tree=$(quietly_at "$1" pleach tree) && [[ $tree != *"(away"* ]]
}

# === A story ===

profiles=()

# A story with a past defines its own.
composed() { compose up -d >&2; }

story() {
    local word
    for word in "$@"; do
        case $word in
            --keep) keeps=yes ;;
            --compose) mode=compose ;;
            --kubernetes)
                declare -F show_kubernetes > /dev/null || fail "the story has nothing for Kubernetes"
                has_kubernetes=yes
                profiles+=(--profile kubernetes)
                ;;
            --tracing)
                declare -F show_tracing > /dev/null || fail "the story has no traces"
                has_tracing=yes
                ;;
            *) fail "the options are --keep, --compose, --kubernetes and --tracing; '$word' is none of them" ;;
        esac
    done
    find_programs
    work=$(mktemp -d "${TMPDIR:-/tmp}/pleach-story.XXXXXX")
    chmod 755 "$work" # database servers run as other users
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ "$mode" = compose ]; then
        if [ "$has_tracing" = yes ]; then
            profiles+=(--profile traces)
            export OTLP=http://traces:4317
            compose --profile traces up -d traces >&2
        fi
        composed
        local name
        for name in "${nodes[@]}"; do
            wait_for 60 "the node $name" quietly_at "$name" pleach tree
        done
    else
        processes
    fi
    wait_for 60 "the whole tree" tree_is_whole "${nodes[0]}"
    show
    if [ "$has_kubernetes" = yes ]; then show_kubernetes; fi
    if [ "$has_tracing" = yes ]; then show_tracing; fi
    if [ "$keeps" = yes ]; then
        note "running until Ctrl-C: ${nodes[0]} is http://${address:-127.0.0.1}:${port[${nodes[0]}]}"
        [ "$mode" = compose ] || note "the logs and the data are in $work"
        while true; do sleep 1; done
    fi
}
