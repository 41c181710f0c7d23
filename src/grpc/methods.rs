//! The methods of the service and their classes, looked up by the path of a call.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use prost::Message as _;
use prost_types::{
    DescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions,
    method_options::IdempotencyLevel,
};

use crate::{auth::Method, proto::account_v1::DESCRIPTOR_SET};

/// Prefix of the paths of the service's methods.
const PATH: &str = "/account.v1.AccountService/";
/// The path of Envoy's external authorization.
const EXT_AUTHZ_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The name of that method in the policy and in metrics.
pub(super) const EXT_AUTHZ: &str = "envoy.service.auth.v3.Authorization/Check";

/// The class of a method, by the effect of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// A read.
    Read,
    /// A change.
    Change,
    /// A stream that lasts until its caller or the service ends it.
    Watch,
}

/// Fields of requests that name the acting user of a change.
const ACTORS: [&str; 3] = ["acting_user", "adding_user", "founding_user"];

/// All methods that the policy grants: those of the contract, and Envoy's external authorization.
#[must_use]
pub fn methods() -> Vec<Method> {
    let methods = granted_methods().into_iter();
    methods.map(|(method, _)| method).collect()
}

fn granted_methods() -> Vec<(Method, Class)> {
    let ext_authz = Method {
        name: EXT_AUTHZ.to_owned(),
        is_of_platform: false,
    };
    let mut methods = described_methods();
    methods.push((ext_authz, Class::Read));
    methods
}

/// The methods of the contract.
fn described_methods() -> Vec<(Method, Class)> {
    let set = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap_or_default();
    let messages = set.file.iter().flat_map(|file| &file.message_type);
    let has_actor = messages.filter(|message| {
        let mut fields = message.field.iter();
        fields.any(|field| ACTORS.contains(&field.name()))
    });
    let has_actor: Vec<_> = has_actor.map(DescriptorProto::name).collect();
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods = services.flat_map(|service| &service.method);
    let methods = methods.map(|described| {
        let class = Class::of(described);
        let request = described.input_type().rsplit('.').next();
        let has_actor = request.is_some_and(|request| has_actor.contains(&request));
        let method = Method {
            name: described.name().to_owned(),
            is_of_platform: class == Class::Change && !has_actor,
        };
        (method, class)
    });
    methods.collect()
}

impl Class {
    /// The class of a method, by its `idempotency_level` and its kind of response.
    fn of(method: &MethodDescriptorProto) -> Self {
        let options = method.options.as_ref();
        match options.map(MethodOptions::idempotency_level) {
            Some(IdempotencyLevel::NoSideEffects) if method.server_streaming() => Self::Watch,
            Some(IdempotencyLevel::NoSideEffects) => Self::Read,
            _ => Self::Change,
        }
    }
}

/// The name of the method, if the path is one of the account service or of Envoy's external
/// authorization.
pub(super) fn name_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix(PATH);
    name.or_else(|| (path == EXT_AUTHZ_PATH).then_some(EXT_AUTHZ))
}

/// A value for each method, looked up by the path of a call.
#[derive(Debug)]
pub(super) struct ByMethod<T>(HashMap<String, Arc<T>, RandomState>);

impl<T> ByMethod<T> {
    /// Makes a value of each method's name and class.
    pub(super) fn new(make: impl Fn(&str, Class) -> T) -> Self {
        let by_name = granted_methods()
            .into_iter()
            .map(|(Method { name, .. }, class)| {
                let of_method = Arc::new(make(&name, class));
                (name, of_method)
            });
        Self(by_name.collect())
    }

    /// The value of the method with this path.
    pub(super) fn get(&self, path: &str) -> Option<&Arc<T>> {
        self.0.get(name_of(path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::write_request;

    #[test]
    fn changes_without_an_acting_user_are_platform_operations() {
        let methods = methods().into_iter();
        let mut of_platform: Vec<_> = methods
            .filter(|method| method.is_of_platform)
            .map(|method| method.name)
            .collect();
        of_platform.sort();
        let expected = [
            "CreateUser",
            "DeleteUser",
            "EraseUser",
            "ResumeOrganization",
            "ResumeUser",
            "SuspendOrganization",
            "SuspendUser",
            "UndeleteUser",
            "UpdateUser",
        ];
        assert_eq!(of_platform, expected);
    }

    #[test]
    fn only_reads_have_names_that_begin_like_a_read() {
        let reads = [
            "Get",
            "BatchGet",
            "Lookup",
            "List",
            "Count",
            "Check",
            "BatchCheck",
        ];
        for (Method { name, .. }, class) in described_methods() {
            let is_read = reads.iter().any(|read| name.starts_with(read));
            assert_eq!(is_read, class == Class::Read, "{name}");
            assert_eq!(name == "WatchChanges", class == Class::Watch, "{name}");
        }
    }

    #[test]
    fn each_change_of_the_contract_has_a_mutation() {
        let methods = described_methods().into_iter();
        let changes = methods.filter(|(_, class)| *class == Class::Change);
        let mut changes: Vec<_> = changes.map(|(method, _)| method.name).collect();
        let mut mutations = write_request::RPCS.to_vec();
        changes.sort();
        mutations.sort_unstable();
        assert_eq!(changes, mutations);
    }
}
