# The commands of this repository. `just` lists them. `just check` reads only; `just fix` is the one that
# changes files.

_list:
    @just --list --unsorted

# What a change must pass first: format, lints, the library's tests, the layers. Needs protoc, and no root.
check:
    cargo fmt --all --check
    cargo clippy --locked --all-targets -- -D warnings
    cargo test --locked --lib --test layers --test tidy

# All tests, and what they need is installed first. `just test fast` runs those that need no peers.
test which="all":
    tests/run {{which}}

# Mends what mends itself: lints, then the format.
fix:
    cargo clippy --locked --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# The node beside its peers: half an hour, on an idle machine. Options: benches/README.md.
bench *options:
    tests/peers/build etcd kine
    cargo bench --locked --bench peers -- {{options}}

# The stories of topologies/. Options: --compose (in Docker), --kubernetes, names. As root.
stories *options:
    tests/stories/run {{options}}

# The library's documentation, in which every link must lead somewhere.
doc:
    RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps

# README and the book, held against what there is. Options: --write (the generated pages), --links, names of pages.
docs *options:
    cargo build
    tests/docs/run {{options}}

# Whether the tests of the page notice what they must. Needs what `just test` installs.
planted:
    cargo build
    PLEACH=target/debug/pleach tests/page/run --planted

# What is read from users and clients, fuzzed: seconds for each target. Needs protoc and a C++ compiler.
fuzz seconds="60" *targets:
    tests/fuzz/run {{seconds}} {{targets}}

# Random tests for longer: seeds of tests/network, seconds of tests/tree, requests of tests/oracle. Needs what
# `just test` installs.
seeds network="200..2000" tree_seconds="600" requests="1000000":
    env -u PLEACH_SEED PLEACH_NETWORK_SEEDS={{network}} \
        cargo test --locked --test network no_trouble_of_the_network -- --nocapture
    env -u PLEACH_SEED PLEACH_TREE_SECONDS={{tree_seconds}} \
        cargo test --locked --test tree a_tree_in_which_everything_fails -- --nocapture
    env -u PLEACH_SEED PLEACH_ORACLE_REQUESTS={{requests}} cargo test --locked --test oracle -- --nocapture

# Takeovers, restores, second parents, copied roots and leases that end, again and again. Needs what `just test` installs.
rounds count="100" *names:
    tests/seams/rounds {{count}} {{names}}
