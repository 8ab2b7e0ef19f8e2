#!/usr/bin/env bash
# Builds the images that the compose files of topologies/ name, from what is on this machine, where images can't be
# pulled. They stand for the published ones, with the same names of programs, variables and folders, as far as the
# stories need them:
#
#   pleach:latest           as deploy/Containerfile has it, with the node that PLEACH names instead of a new build
#   postgres, mariadb       Debian's packages, so PostgreSQL 15 and MariaDB 10.11
#   etcd, kube-apiserver    those of tests/peers/build
#   alpine/openssl          Debian's
#
#   tests/stories/images.sh FOLDER [kubernetes]
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
folder=$1
with=${2:-}

# The tag that the compose files give an image.
tag() { grep -rhoE "image: $1:[^ ]+" "$repository/topologies" | sort -u | head -n 1 | cut -d' ' -f2; }

# The libraries of a program, where it looks for them.
libraries() { { ldd "$1" 2> /dev/null || true; } | { grep -o '/[^ ]*' || true; } | xargs -r cp -L --parents -t "$2"; }

# build TAG: what is on standard input, in the folder of the context.
build() { docker build --quiet --tag "$1" --file - "$folder/context" > /dev/null 2> "$folder/build.log" || { cat "$folder/build.log" >&2 && return 1; }; }

empty() { rm -rf "$folder/context" && mkdir -p "$folder/context/image"; }

node() {
    local program=${PLEACH:-} candidate
    for candidate in "$repository"/target/{release,debug}/pleach; do
        [ -n "$program" ] || [ ! -x "$candidate" ] || program=$candidate
    done
    [ -n "$program" ] || { echo "there is no node: build one, or name it in PLEACH" >&2 && return 1; }
    empty
    (
        cd "$folder/context/image"
        mkdir -p usr/local/bin etc/ssl/certs data db tmp
        strip --output-file=usr/local/bin/pleach "$program"
        libraries "$program" .
        cp -L /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/
        echo 'hosts: files dns' > etc/nsswitch.conf
        echo 'pleach:x:65532:65532::/data:/' > etc/passwd
        chmod 1777 tmp
        chown 65532:65532 data db
    )
    # COPY of a folder's contents gives them to root; in an archive they keep their owners.
    tar -C "$folder/context/image" -cf "$folder/context/image.tar" .
    # The second stage of the Containerfile, to the letter but for where the files come from.
    sed -n '/^FROM scratch/,$p' "$repository/deploy/Containerfile" |
        sed 's#^COPY --from=build /image /#ADD image.tar /#' | build pleach:latest
    local bytes
    bytes=$(docker image inspect --format '{{.Size}}' pleach:latest)
    # What deploy/README.md says of it; a build without optimization is longer.
    case $program in */release/* | */dist/*)
        ((bytes <= 30 * 1024 * 1024)) || { echo "the image has $bytes bytes" >&2 && return 1; } ;;
    esac
    echo "pleach:latest has $((bytes / 1024 / 1024)) MiB" >&2
}

# A program alone, with nothing beside it but its libraries.
alone() {
    local image=$1 program
    shift
    empty
    mkdir -p "$folder/context/image/usr/local/bin" "$folder/context/image/tmp"
    for program in "$@"; do
        cp "$program" "$folder/context/image/usr/local/bin/$(basename "$program")"
        libraries "$program" "$folder/context/image"
    done
    printf 'FROM scratch\nCOPY image /\nENV PATH=/usr/local/bin\n' | build "$image"
}

# A Debian with both databases, once.
debian() {
    docker image inspect stories/debian > /dev/null 2>&1 && return
    local root=$folder/debian
    if [ ! -e "$root/done" ]; then
        rm -rf "$root"
        debootstrap --variant=minbase --include=postgresql,mariadb-server,openssl bookworm "$root" > "$folder/debootstrap.log"
        touch "$root/done"
    fi
    tar -C "$root" --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./var/cache/apt -c . |
        docker import - stories/debian > /dev/null
}

postgres() {
    empty
    cat > "$folder/context/entrypoint" << 'END'
#!/bin/sh
set -e
data=/var/lib/postgresql/data
export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
if [ "$(id -u)" = 0 ]; then
    mkdir -p /var/run/postgresql && chown postgres $data /var/run/postgresql && chmod 700 $data
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -e $data/PG_VERSION ]; then
    echo "$POSTGRES_PASSWORD" | initdb -D $data -U postgres -E UTF8 --auth-local=trust --auth-host=scram-sha-256 --pwfile=/dev/stdin
    echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
fi
exec postgres -D $data -c 'listen_addresses=*'
END
    chmod 755 "$folder/context/entrypoint"
    printf 'FROM stories/debian\nCOPY entrypoint /entrypoint\nRUN mkdir -p /var/lib/postgresql/data\nVOLUME /var/lib/postgresql/data\nENTRYPOINT ["/entrypoint"]\n' |
        build "$(tag postgres)"
}

mariadb() {
    empty
    cat > "$folder/context/entrypoint" << 'END'
#!/bin/sh
set -e
data=/var/lib/mysql
password=${MARIADB_ROOT_PASSWORD:-$MYSQL_ROOT_PASSWORD}
mkdir -p /run/mysqld && chown -R mysql $data /run/mysqld
if [ ! -e $data/mysql ]; then
    mariadb-install-db --no-defaults --user=mysql --skip-test-db --datadir=$data
    cat > /run/first.sql << SQL
DELETE FROM mysql.global_priv WHERE User = 'root' AND Host <> 'localhost';
FLUSH PRIVILEGES;
CREATE USER root@'%' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
ALTER USER root@localhost IDENTIFIED BY '$password';
SQL
    set -- --init-file=/run/first.sql
fi
exec mariadbd --no-defaults --user=mysql --datadir=$data --socket=/run/mysqld/mysqld.sock --bind-address='*' --skip-name-resolve "$@"
END
    chmod 755 "$folder/context/entrypoint"
    printf 'FROM stories/debian\nCOPY entrypoint /entrypoint\nRUN rm -rf /var/lib/mysql && mkdir /var/lib/mysql\nVOLUME /var/lib/mysql\nENTRYPOINT ["/entrypoint"]\n' |
        build "$(tag mariadb)"
}

debian
node
postgres
mariadb
alone "$(tag quay.io/coreos/etcd)" "$ETCD" "$ETCDCTL"
if [ "$with" = kubernetes ]; then
    alone "$(tag registry.k8s.io/kube-apiserver)" "$KUBE_APISERVER"
    empty
    echo 'FROM stories/debian' | build "$(tag alpine/openssl)"
fi
