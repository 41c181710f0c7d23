//! Settings of the server: its address and limits, traces, and the authentication of callers.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use jsonwebtoken::Algorithm;

use super::values::{algorithm, host_and_port, millis, not_empty, seconds, share, url};
use crate::{
    auth::{KeySource, WebOrigin},
    telemetry::TraceExport,
};

/// The gRPC server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Address to listen on. Port 0: any free port.
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:50051"
    )]
    pub listen_addr: SocketAddr,
    /// Longest wait for running calls after SIGTERM, in milliseconds.
    #[arg(long, env = "DRAIN_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pub drain_timeout_ms: Duration,
    /// Longest wait of a WatchChanges stream for its client to receive a
    /// response, in milliseconds.
    #[arg(long, env = "WATCH_PATIENCE_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    pub watch_patience_ms: Duration,
    /// Most concurrent reads, and most concurrent changes. Further calls wait up
    /// to 250 ms in a queue that is fair between callers, and are then rejected.
    /// While the processors are overloaded, the limit falls, but not below 4 for
    /// each processor.
    #[arg(long, env = "CALLS_AT_ONCE", value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(16..))]
    pub calls_at_once: u16,
    /// Most open connections on which a call was admitted. At the limit, the caller
    /// with the most connections loses its oldest one to a caller with fewer. A
    /// connection takes some 20 kB.
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Age of a connection, in seconds, at which the server requests its client to
    /// reconnect, so that clients find new replicas. WatchChanges streams end then,
    /// too.
    #[arg(long, env = "MAX_CONNECTION_AGE_S", value_name = "S", default_value = "1800", value_parser = seconds)]
    pub max_connection_age_s: Duration,
    /// Most memberships of deleted users and organizations that all replicas
    /// together remove in a second. 0: this replica removes none.
    #[arg(
        long,
        env = "CLEAN_UP_RATE",
        value_name = "COUNT",
        default_value_t = 250
    )]
    pub clean_up_rate: u32,
    /// Address to serve metrics on, for Prometheus. Without it, the service has
    /// no metrics.
    #[arg(long, env = "METRICS_ADDR", value_name = "IP:PORT")]
    pub metrics_addr: Option<SocketAddr>,
    /// Additional address for health checks, always without TLS: for probes that
    /// do not support TLS.
    #[arg(long, env = "HEALTH_ADDR", value_name = "IP:PORT")]
    pub health_addr: Option<SocketAddr>,
    /// Origins of web pages that may call the service by gRPC-Web, such as
    /// `https://console.example.com`, see docs/guides/browsers.md. Without them, pages
    /// cannot call it.
    #[arg(
        long,
        env = "WEB_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ','
    )]
    pub web_origins: Vec<WebOrigin>,
    /// Calls between replicas.
    #[command(flatten)]
    pub peers: PeerSettings,
    /// The export of traces.
    #[command(flatten)]
    pub traces: TraceSettings,
    /// Authentication and authorization of callers.
    #[command(flatten)]
    pub callers: CallerSettings,
}

/// Calls between replicas.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Replicas")]
pub struct PeerSettings {
    /// Address to listen on for other replicas, always with TLS. Without it, this replica
    /// serves from its memory only reads with max_staleness. `dev` listens on loopback.
    #[arg(long, env = "PEER_ADDR", value_name = "IP:PORT")]
    pub peer_addr: Option<SocketAddr>,
    /// Address at which other replicas reach PEER_ADDR. Without it, that address itself
    /// or, if it is unspecified, the address of this host that is used for outgoing
    /// connections.
    #[arg(long, env = "PEER_ADVERTISE", value_name = "HOST:PORT", requires = "peer_addr", value_parser = host_and_port)]
    pub peer_advertise: Option<String>,
}

/// The export of traces.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceSettings {
    /// Collector of traces, by OTLP over gRPC, such as http://127.0.0.1:4317.
    /// Without it, there are no traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = url)]
    pub otlp_endpoint: Option<String>,
    /// Share of traced calls, from 0 to 1, among the calls whose caller has not
    /// decided.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE", default_value = "0.01", value_parser = share)]
    pub trace_ratio: f64,
}

impl TraceSettings {
    /// The export of traces. `None` without a collector.
    #[must_use]
    pub fn export(&self) -> Option<TraceExport> {
        let endpoint = self.otlp_endpoint.clone()?;
        let ratio = self.trace_ratio;
        Some(TraceExport { endpoint, ratio })
    }
}

/// Authentication and authorization of callers.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Callers")]
pub struct CallerSettings {
    /// File with the policy: the methods that each caller may call, and the actors on
    /// whose behalf. Read again when it changes. Without it, every caller may do everything.
    #[arg(long, env = "POLICY_FILE", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// File with the routes whose requests Envoy may submit for authorization, see
    /// docs/guides/envoy.md. Read again when it changes. Without it, the service does not offer
    /// Envoy's external authorization.
    #[arg(long, env = "EXT_AUTHZ_FILE", value_name = "FILE")]
    pub ext_authz: Option<PathBuf>,
    /// Permit addresses other than loopback without a policy or without TLS.
    #[arg(long, env = "INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// File with the server's certificate and its intermediate certificates, in PEM.
    /// Read again when it changes.
    #[arg(long, env = "TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's private key, in PEM.
    #[arg(long, env = "TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// File with the roots of clients' certificates, in PEM. The policy identifies a
    /// certificate by the first URI among its alternative names, else by the first DNS
    /// name. Without --jwks, every client needs a certificate.
    #[arg(
        long,
        env = "TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert",
        requires = "policy"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// File with the revocation lists for clients' certificates, in PEM: one of each
    /// issuing authority. Read again when it changes; open connections stay open.
    #[arg(
        long,
        env = "TLS_CLIENT_CRL",
        value_name = "FILE",
        requires = "tls_client_ca"
    )]
    pub tls_client_crl: Option<PathBuf>,
    /// File or https:// URL of the JSON Web Key Set that verifies bearer tokens. Read
    /// again every 5 minutes, and when a token names an unknown key.
    #[arg(
        long,
        env = "JWKS",
        value_name = "FILE|URL",
        requires = "jwt_issuer",
        requires = "jwt_audience",
        requires = "policy"
    )]
    pub jwks: Option<KeySource>,
    /// Required issuer of tokens.
    #[arg(long, env = "JWT_ISSUER", value_name = "ISSUER", value_parser = not_empty)]
    pub jwt_issuer: Option<String>,
    /// Required audience of tokens.
    #[arg(long, env = "JWT_AUDIENCE", value_name = "AUDIENCE", value_parser = not_empty)]
    pub jwt_audience: Option<String>,
    /// Accepted signature algorithms of tokens.
    #[arg(
        long,
        env = "JWT_ALGORITHMS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_values = ["RS256", "ES256", "EdDSA"],
        value_parser = algorithm
    )]
    pub jwt_algorithms: Vec<Algorithm>,
    /// Disable the gRPC server reflection.
    #[arg(long, env = "NO_REFLECTION", value_parser = BoolishValueParser::new())]
    pub no_reflection: bool,
}
