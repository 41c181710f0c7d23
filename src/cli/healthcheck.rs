//! The health check of a running server.

use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{config::HealthcheckSettings, error_chain::describe};

/// Checks the health of a server.
///
/// # Errors
/// The reason: the server is unreachable, does not respond in time, or is not serving.
pub async fn check(settings: &HealthcheckSettings) -> Result<(), String> {
    let addr = &settings.addr;
    let checked = tokio::time::timeout(settings.timeout_ms, async {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"));
        let channel = endpoint.map_err(|error| describe(&error))?.connect().await;
        let channel = channel.map_err(|error| describe(&error))?;
        let request = HealthCheckRequest {
            service: String::new(),
        };
        let response = HealthClient::new(channel).check(request).await;
        let response = response.map_err(|status| status.to_string())?;
        match response.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("the server reports {}", other.as_str_name())),
        }
    });
    checked
        .await
        .unwrap_or_else(|_| Err("no response in time".to_owned()))
        .map_err(|why| format!("{addr} is not serving: {why}"))
}
