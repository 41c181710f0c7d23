# All tasks. CI runs the same recipes.

# Lists the recipes.
default:
    @just --list

# Serve on embedded servers, ready for grpcurl.
dev *arguments:
    cargo run -- dev {{ arguments }}

# All tests, on embedded servers.
test:
    cargo test

# Spelling and words; formatting, lock files, lints and documentation of the code.
lint:
    typos
    cargo fmt --all --check
    cargo fmt --manifest-path benches/Cargo.toml --check
    cargo fmt --manifest-path benches/echo/Cargo.toml --check
    cargo metadata --locked --manifest-path benches/Cargo.toml --format-version 1 > /dev/null
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo clippy --locked --no-default-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# Permissions: every call, in the full product with every kind of grant.
conformance:
    CONFORMANCE=full cargo test --locked --test it conformance::

# Tests that start servers, with one processor for each server: the runtime differs there.
one-processor:
    REPLICA_PROCESSOR=0 cargo test --locked --test it -- binary:: fleet:: telemetry::

# The cache protocol as a model, explored exhaustively: about two minutes.
model:
    cargo test --locked -p coherence-model -- --nocapture --test-threads 1

# The same within larger bounds: about half an hour, and up to 20 GB of memory.
model-large:
    cargo test --locked -p coherence-model -- --nocapture --test-threads 1 --ignored

# Checks that the tests fail without each step of the cache protocol.
sabotage:
    tests/sabotage/run

# The histories of `cargo test`, with more operations.
more-histories:
    HISTORY_OPERATIONS=10000 HISTORY_WORLDS=6 cargo test --locked --test it histories:: -- --nocapture

# At least a million operations of histories without near caches, and as many with them: 45 minutes. Nothing else may
# run meanwhile.
histories:
    HISTORY_OPERATIONS=1000000 HISTORY_WORLDS=3 cargo test --locked --profile load --test it histories:: -- --nocapture

# Lint and formatting of the contract, and compatibility with the image that clients were last generated from.
proto:
    buf lint
    buf breaking proto --against proto/account.v1.binpb
    buf format --diff --exit-code

# Licences, sources and duplicates of the dependencies; known vulnerabilities if the advisory database is reachable.
deny:
    cargo deny check bans licenses sources
    if cargo deny fetch db; then cargo deny check advisories; else echo "advisories NOT checked: the database cannot be fetched"; fi

# Mutates the code that differs from a commit, one place at a time, and runs the tests: some minutes for each mutant.
# `.cargo/mutants.toml` lists the mutants that no test can detect. Needs cargo-mutants.
mutants since="HEAD~1":
    mkdir -p target
    git diff {{ since }} > target/mutants.diff
    cargo mutants --in-diff target/mutants.diff --output target

# Effect of one caller's flood on another one's latency, the service on one processor and all else on the other.
flood:
    cargo test --locked --profile load --test it --no-run
    REPLICA_PROCESSOR=0 taskset -c 1 cargo test --locked --profile load --test it fleet::flood -- --ignored --nocapture

# Mixed load with faults against three processes for some minutes: the remaining resources, and wrong results.
soak minutes="60":
    SOAK_MINUTES={{ minutes }} cargo test --locked --profile load --test it fleet::soak -- --ignored --nocapture

# All tests against independent servers: DynamoDB Local, and moto for Secrets Manager.
second-opinion:
    tests/second_opinion/run

# The grpcurl commands of the README, and the story with generated Python, Go, TypeScript and Java clients, against `dev`.
clients:
    tests/clients/run

# The gateway's bounds, its OpenAPI document and AuthZEN's certification scenario, against `dev`.
gateway:
    tests/gateway/run

# A real Envoy that asks the service about each request, and that transcodes the contract.
envoy:
    tests/envoy/run

# A web page that calls the service by gRPC-Web, in a headless Chromium.
browser:
    tests/browser/run

# Checks `deploy/` with cfn-lint, Kubernetes' schemas and promtool.
deploy:
    tests/deploy/run

# Fuzzes input from outside, for some seconds with each target.
fuzz seconds="20":
    tests/fuzz/run {{ seconds }}

# Compares the service with its limit and its peers, on two processors: docs/performance.md. Nothing else may run meanwhile.
bench *parts:
    benches/run {{ parts }}

# What authorizations add to each request of Envoy: the service, Envoy's own filter, SpiceDB and OpenFGA. Needs what
# `bench` builds. Nothing else may run meanwhile.
bench-envoy:
    benches/envoy/run

# Simulates hit ratios and costs of the near cache on a paused clock, and measures its memory: half an hour.
simulate:
    #!/usr/bin/env bash
    set -euo pipefail
    mkdir -p target/bench
    cargo test --locked --profile load --lib coherence::simulation -- --ignored --nocapture --test-threads 1 | tee target/bench/simulation.md

# Instructions and allocations of a check that memory answers, beyond tonic, by callgrind.
own-code:
    benches/instructions

# Builds the images without a container engine, and runs them as in a cluster. STAND_INS=yes if their base images are not available.
image:
    tests/image/run
    tests/image/gateway

# Bill of materials of the binary, as CycloneDX. Needs cargo-cyclonedx.
sbom:
    cargo cyclonedx --format json --no-default-features --override-filename account-service.cdx
    mv account-service.cdx.json target/
    rm model/account-service.cdx.json

# Records a profile of the service under load, for `release`. Needed after changes of the compiler or of much of the hot path.
profile:
    benches/profile

# Builds the release binary, at target/account-service.
release:
    deploy/release

# Checks that two builds of the image's binary in the same folder are equal to the byte: it contains paths of generated code.
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
all: lint proto deny test conformance more-histories one-processor model sabotage second-opinion clients gateway envoy deploy fuzz
