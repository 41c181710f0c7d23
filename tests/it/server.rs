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
async fn a_call_that_is_under_way_when_the_service_stops_is_answered() {
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
async fn reflection_answers_what_it_does_not_know_with_an_error_and_goes_on() {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let (_backends, replica) = start().await;
    let ask = |symbol: &str| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    };
    let channel = replica.channel.clone();
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let asked = [
        "no.such.Symbol",
        "account.v1.ROLE_OWNER",
        "account.v1.AccountService.CheckMembership",
    ];
    let answers = client.server_reflection_info(tokio_stream::iter(asked.map(ask)));
    let answers: Vec<_> = answers.await.unwrap().into_inner().collect().await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.len(), asked.len());
    for (answer, symbol) in answers.iter().zip(asked) {
        assert_eq!(answer.original_request, Some(ask(symbol)));
    }
    let Some(MessageResponse::ErrorResponse(error)) = &answers[0].message_response else {
        panic!("{:?}", answers[0]);
    };
    assert_eq!(error.error_code, i32::from(tonic::Code::NotFound));
    for answer in &answers[1..] {
        let Some(MessageResponse::FileDescriptorResponse(_)) = answer.message_response else {
            panic!("{answer:?}");
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
    let answers = client.server_reflection_info(tokio_stream::once(request));
    let mut answers = answers.await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(services)) =
        answer
    else {
        panic!("{answer:?}");
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
    let answers = client.server_reflection_info(tokio_stream::once(request));
    let mut answers = answers.await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) =
        answer
    else {
        panic!("{answer:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}
