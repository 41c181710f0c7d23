//! Metrics and traces of AWS SDK calls.

use std::sync::Mutex;

use aws_sdk_dynamodb::config::{
    ConfigBag, Intercept, RuntimeComponents,
    interceptors::{
        BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
        FinalizerInterceptorContextRef,
    },
};
use aws_smithy_runtime_api::{box_error::BoxError, client::orchestrator::Metadata};
use aws_smithy_types::config_bag::{Storable, StoreReplace};

use super::{Backend, BackendCall, Outcome};

/// Operations that the service uses. Any other operation is reported as `Other`.
const OPERATIONS: [&str; 16] = [
    "BatchGetItem",
    "CreateSecret",
    "CreateTable",
    "DeleteItem",
    "DescribeStream",
    "DescribeTable",
    "GetItem",
    "GetRecords",
    "GetSecretValue",
    "GetShardIterator",
    "PutItem",
    "Query",
    "Scan",
    "TransactWriteItems",
    "UpdateItem",
    "UpdateTable",
];

/// Times and traces every call of a client, all its attempts together.
#[derive(Debug, Clone, Copy)]
pub struct AwsCalls(pub Backend);

/// A call, in the SDK's state of the operation, and dropped with that state.
#[derive(Debug)]
struct UnderWay(Mutex<BackendCall>);

impl Storable for UnderWay {
    type Storer = StoreReplace<Self>;
}

impl Intercept for AwsCalls {
    fn name(&self) -> &'static str {
        "AwsCalls"
    }

    // Earlier hooks of a client's interceptors do not have the name of the operation.
    fn read_before_serialization(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let name = config.load::<Metadata>().map_or("", Metadata::name);
        let known = OPERATIONS.iter().find(|operation| **operation == name);
        let call = BackendCall::begin(self.0, known.copied().unwrap_or("Other"));
        let state = config.interceptor_state();
        state.store_put(UnderWay(Mutex::new(call)));
        Ok(())
    }

    // The headers are not signed, because proxies may replace them by their own spans.
    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(UnderWay(call)) = config.load::<UnderWay>()
            && let Ok(call) = call.lock()
        {
            let headers = context.request_mut().headers_mut();
            for (name, value) in call.trace_context() {
                // A call must not fail because of a missing trace.
                let _ = headers.try_insert(name, value);
            }
        }
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let blames_us = |status: u16| (400..500).contains(&status);
        let status = context
            .response()
            .map(|response| response.status().as_u16());
        let outcome = match context.output_or_error() {
            Some(Ok(_)) => Outcome::Ok,
            Some(Err(_)) if status.is_some_and(blames_us) => Outcome::Refused,
            Some(Err(_)) | None => Outcome::Failed,
        };
        if let Some(UnderWay(call)) = config.load::<UnderWay>()
            && let Ok(mut call) = call.lock()
        {
            call.end(outcome);
        }
        Ok(())
    }
}
