//! A token that the service has not made is rejected.
#![no_main]

use account_service::proto::account_v1 as pb;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use tonic::Code;

fuzz_target!(|token: String| {
    let is_empty = token.is_empty();
    let request = pb::ListUsersRequest {
        page_token: token,
        ..pb::ListUsersRequest::default()
    };
    let status = account_service_fuzz::call("ListUsers", &request.encode_to_vec());
    let expected = if is_empty {
        Code::Ok
    } else {
        Code::InvalidArgument
    };
    assert_eq!(status.code(), expected);
});
