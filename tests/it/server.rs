//! The server around the service: health, reflection, stopping.

use account_service::proto::account_v1 as pb;
use tokio_stream::StreamExt as _;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{Client, start};

const SERVICE: &str = "account.v1.AccountService";

#[tokio::test]
async fn health_covers_the_server_and_the_service_until_it_stops() {
    let (_backends, mut replica) = start().await;
    let mut health = HealthClient::new(replica.channel.clone());
    let mut watches = Vec::new();
    for service in ["", SERVICE] {
        let service = service.to_owned();
        let watch = health.watch(HealthCheckRequest { service }).await;
        let mut watch = watch.unwrap().into_inner();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    replica.stop();
    for mut watch in watches {
        let then = watch.next().await.unwrap().unwrap();
        assert_eq!(then.status(), ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn a_call_in_progress_is_completed_when_the_service_stops() {
    let (backends, mut replica) = start().await;
    let late = backends.dynamodb.hold("TransactWriteItems", "olivia", 0);
    let client = replica.client.clone();
    let (created, ()) = tokio::join!(create_user(client, "olivia"), async {
        late.reached().await;
        replica.stop();
        late.release();
    });
    assert_eq!(created.username, "olivia");
    backends.replica().await.get_user("olivia").await.unwrap();
}

async fn create_user(mut client: Client, username: &str) -> pb::User {
    let request = pb::CreateUserRequest {
        username: username.to_owned(),
        ..pb::CreateUserRequest::default()
    };
    let reply = client.create_user(request).await.unwrap();
    reply.into_inner().user.unwrap()
}

#[tokio::test]
async fn reflection_reports_an_unknown_symbol_as_an_error_and_continues() {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let (_backends, replica) = start().await;
    let request_for = |symbol: &str| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    };
    let channel = replica.channel.clone();
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let symbols = [
        "no.such.Symbol",
        "account.v1.ROLE_OWNER",
        "account.v1.AccountService.CheckMembership",
    ];
    let responses = client.server_reflection_info(tokio_stream::iter(symbols.map(request_for)));
    let responses: Vec<_> = responses.await.unwrap().into_inner().collect().await;
    let responses: Vec<_> = responses.into_iter().map(Result::unwrap).collect();
    assert_eq!(responses.len(), symbols.len());
    for (response, symbol) in responses.iter().zip(symbols) {
        assert_eq!(response.original_request, Some(request_for(symbol)));
    }
    let Some(MessageResponse::ErrorResponse(error)) = &responses[0].message_response else {
        panic!("{:?}", responses[0]);
    };
    assert_eq!(error.error_code, i32::from(tonic::Code::NotFound));
    for response in &responses[1..] {
        let Some(MessageResponse::FileDescriptorResponse(_)) = response.message_response else {
            panic!("{response:?}");
        };
    }
}

#[tokio::test]
async fn reflection_describes_the_service_in_both_versions() {
    let (_backends, replica) = start().await;
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(replica.channel.clone());
    let responses = client.server_reflection_info(tokio_stream::once(request));
    let mut responses = responses.await.unwrap().into_inner();
    let response = responses.next().await.unwrap().unwrap().message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(services)) =
        response
    else {
        panic!("{response:?}");
    };
    let names: Vec<_> = services.service.iter().map(|it| it.name.as_str()).collect();
    assert!(names.contains(&SERVICE), "{names:?}");

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                SERVICE.to_owned(),
            ),
        ),
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(replica.channel.clone());
    let responses = client.server_reflection_info(tokio_stream::once(request));
    let mut responses = responses.await.unwrap().into_inner();
    let response = responses.next().await.unwrap().unwrap().message_response;
    let Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) =
        response
    else {
        panic!("{response:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}
