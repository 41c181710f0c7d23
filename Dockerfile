# syntax=docker/dockerfile:1

# Dependencies are built from the manifests alone, so that a change of the
# sources does not build them again.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# Without it, a library puts the time of the build into the binary.
ENV SOURCE_DATE_EPOCH=0
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY third_party third_party
COPY fuzz fuzz
COPY model model
COPY deploy/release deploy/service.profdata deploy/
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && deploy/release \
    && rm -r src
COPY src src
# Cargo compares times, and the placeholders are newer than the sources.
RUN touch src/main.rs src/lib.rs \
    && deploy/release

# No shell, no package manager; certificates and a user that is not root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/account-service /account-service
# Health checks use no TLS, also if the service does.
ENV LISTEN_ADDR=0.0.0.0:50051 \
    HEALTH_ADDR=127.0.0.1:50052 \
    HEALTHCHECK_ADDR=127.0.0.1:50052 \
    LOG_FORMAT=json
EXPOSE 50051
USER nonroot
HEALTHCHECK --interval=10s --timeout=2s --start-period=5s CMD ["/account-service", "healthcheck"]
ENTRYPOINT ["/account-service"]
CMD ["serve"]
