//! The contract's messages as JSON, by its descriptors.

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::Value;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{error_chain::describe, proto::account_v1::DESCRIPTOR_SET};

/// The service's name.
pub const SERVICE: &str = "account.v1.AccountService";

/// The messages and methods of the contract.
#[derive(Debug, Clone)]
pub struct Contract(DescriptorPool);

impl Contract {
    /// Reads the descriptors.
    ///
    /// # Errors
    /// They are not valid.
    pub fn read() -> Result<Self, String> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET);
        pool.map(Self).map_err(|error| describe(&error))
    }

    /// The message of this name, without the package.
    ///
    /// # Errors
    /// There is no such message.
    pub fn message(&self, name: &str) -> Result<MessageDescriptor, String> {
        let message = self.0.get_message_by_name(&format!("account.v1.{name}"));
        message.ok_or_else(|| format!("the contract has no {name}"))
    }

    /// The method of this name.
    ///
    /// # Errors
    /// There is no such method.
    pub fn method(&self, name: &str) -> Result<MethodDescriptor, String> {
        let service = self.0.get_service_by_name(SERVICE);
        let method = service.and_then(|service| service.methods().find(|it| it.name() == name));
        method.ok_or_else(|| format!("the contract has no {name}"))
    }
}

/// A message as JSON.
///
/// # Errors
/// A value has no form in JSON, such as a time beyond the year 9999.
pub fn to_json(message: &DynamicMessage) -> Result<Value, String> {
    let options = SerializeOptions::new();
    let json = message.serialize_with_options(serde_json::value::Serializer, &options);
    json.map_err(|error| describe(&error))
}

/// A message from JSON.
///
/// # Errors
/// The reason: a value is not of its field's type.
pub fn from_json(descriptor: MessageDescriptor, json: Value) -> Result<DynamicMessage, String> {
    DynamicMessage::deserialize(descriptor, json).map_err(|error| describe(&error))
}

/// The codec of a method's messages.
#[derive(Debug, Clone)]
pub struct DynamicCodec {
    /// The type of responses.
    pub response: MessageDescriptor,
}

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(to)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for DynamicCodec {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.response.clone(), from);
        message
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
