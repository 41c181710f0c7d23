# The one door to every task; CI runs the same recipes.

# What there is.
default:
    @just --list

# Serve on embedded servers, ready for grpcurl.
dev *arguments:
    cargo run -- dev {{ arguments }}

# All tests, on embedded servers.
test:
    cargo test

# Spelling and words; formatting, lints and documentation of the code.
lint:
    typos
    cargo fmt --all --check
    cargo fmt --manifest-path benches/Cargo.toml --check
    cargo fmt --manifest-path benches/echo/Cargo.toml --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo clippy --locked --no-default-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# What starts servers, with one processor for each: they run otherwise there.
one-processor:
    REPLICA_PROCESSOR=0 cargo test --locked --test it -- binary:: fleet:: telemetry::

# The cache protocol as a model, explored exhaustively: about two minutes.
model:
    cargo test --locked -p coherence-model -- --nocapture --test-threads 1

# The same within larger bounds: about half an hour, and up to 20 GB of memory.
model-large:
    cargo test --locked -p coherence-model -- --nocapture --test-threads 1 --ignored

# Whether the tests notice each step of the cache protocol that is left out.
sabotage:
    cargo test --locked --features sabotage --test it histories::sabotage -- --nocapture --test-threads 1

# The histories of `cargo test`, with more operations.
more-histories:
    HISTORY_OPERATIONS=10000 HISTORY_WORLDS=6 cargo test --locked --test it histories:: -- --nocapture

# At least a million operations of histories.
histories:
    HISTORY_OPERATIONS=1000000 HISTORY_WORLDS=24 cargo test --locked --profile load --test it histories:: -- --nocapture

# Lint, formatting and compatibility of the contract. The image is what clients were generated from last.
proto:
    buf lint
    buf breaking proto --against proto/account.v1.binpb
    buf format --diff --exit-code

# Licences, sources and duplicates of the dependencies; known vulnerabilities where the advisory database can be had.
deny:
    cargo deny check bans licenses sources
    if cargo deny fetch db; then cargo deny check advisories; else echo "advisories NOT checked: the database cannot be fetched"; fi

# Changes the code in one place after the other, where it differs from a commit, and runs the tests with each: some
# minutes for a mutant. Those that no test can notice are listed in `.cargo/mutants.toml`. Needs cargo-mutants.
mutants since="HEAD~1":
    mkdir -p target
    git diff {{ since }} > target/mutants.diff
    cargo mutants --in-diff target/mutants.diff --output target

# What one caller's flood does to another one's latency, the service on one processor and all else on the other.
flood:
    cargo test --locked --profile load --test it --no-run
    REPLICA_PROCESSOR=0 taskset -c 1 cargo test --locked --profile load --test it fleet::flood -- --ignored --nocapture

# Mixed load with faults against three processes for so many minutes: what is left, and whether anything was wrong.
soak minutes="60":
    SOAK_MINUTES={{ minutes }} cargo test --locked --profile load --test it fleet::soak -- --ignored --nocapture

# All tests against servers that are not ours: DynamoDB Local, and moto for Secrets Manager.
second-opinion:
    tests/second_opinion/run

# The lines of the README with grpcurl, and the story with generated Python, Go, TypeScript and Java clients, against `dev`.
clients:
    tests/clients/run

# What `deploy/` holds, with cfn-lint, Kubernetes' schemas and promtool.
deploy:
    tests/deploy/run

# What outsiders send, made up by a fuzzer: so many seconds for each target.
fuzz seconds="20":
    tests/fuzz/run {{ seconds }}

# Measures the service beside its limit and its peers, on two processors: docs/performance.md. Nothing else may run beside it.
bench *parts:
    benches/run {{ parts }}

# Instructions and allocations of a cached check between tonic and the SDK, by callgrind.
own-code:
    benches/instructions

# The image, built without an engine and run as a cluster runs it. With STAND_INS=yes, where no registry has its bases.
image:
    tests/image/run

# Bill of materials of the binary, as CycloneDX. Needs cargo-cyclonedx.
sbom:
    cargo cyclonedx --format json --no-default-features --override-filename account-service.cdx
    mv account-service.cdx.json target/
    rm model/account-service.cdx.json

# Records how the service runs under load, for `release`: where the compiler or much of the hot path has changed.
profile:
    benches/profile

# The binary as it is shipped, at target/account-service.
release:
    deploy/release

# Whether two builds of the image's binary are the same to the byte. In the same place: paths of generated code are in it.
reproducible:
    #!/usr/bin/env bash
    set -euo pipefail
    export SOURCE_DATE_EPOCH=0 CARGO_TARGET_DIR=target/reproducible
    for build in first second; do
        rm -rf "$CARGO_TARGET_DIR"
        deploy/release
        mv "$CARGO_TARGET_DIR/account-service" "target/account-service-$build"
    done
    sha256sum target/account-service-{first,second}
    cmp target/account-service-{first,second}

# Everything.
all: lint proto deny test more-histories one-processor model sabotage second-opinion clients deploy fuzz
