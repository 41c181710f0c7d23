//! One replica, and services that call it with every kind of grant.

use serde_json::{Value, json};

use super::{
    rules::{GRANTS, Grant},
    world::LABEL,
};
use crate::{
    callers::{Authority, Files, connect, tls_settings},
    harness::{Backends, Replica},
};

pub struct Services {
    pub backends: Backends,
    replicas: Vec<(Grant, Replica)>,
    _replica: Replica,
    _files: Files,
}

impl Services {
    pub async fn start() -> Self {
        let (backends, files) = (Backends::start().await, Files::new());
        let (server, clients) = (Authority::new(), Authority::new());
        files.write("policy.json", &policy().to_string());
        let mut settings = backends.serve_settings();
        settings.server.callers = tls_settings(&files, &server, &clients);
        let replica = Replica::start(&settings).await;
        let mut replicas = Vec::new();
        for grant in GRANTS {
            let identity = clients.of_client(&certificate(grant));
            let client = connect(replica.addr, &server, Some(identity)).await;
            replicas.push((grant, replica.called_by(client.unwrap())));
        }
        Self {
            backends,
            replicas,
            _replica: replica,
            _files: files,
        }
    }

    /// The replica, called by a service with this grant.
    pub fn with(&self, grant: Grant) -> &Replica {
        let mut replicas = self.replicas.iter();
        &replicas.find(|(of, _)| *of == grant).unwrap().1
    }
}

fn certificate(grant: Grant) -> String {
    format!("spiffe://example.org/{grant:?}")
}

fn policy() -> Value {
    let (label, value) = LABEL;
    let callers = GRANTS.map(|grant| {
        let mut caller = json!({"certificate": certificate(grant), "methods": ["*"],
            "acts_for_users": true, "acts_as_platform": true});
        let organizations = match grant {
            Grant::Every => None,
            Grant::ByName => Some(json!([{"prefix": "org-"}])),
            Grant::ByLabels => Some(json!([{"labels": {label: value}}])),
            Grant::Others => Some(json!([{"name": "elsewhere"}, {"labels": {label: "elsewhere"}}])),
        };
        if let Some(organizations) = organizations {
            caller["organizations"] = organizations;
        }
        (format!("{grant:?}").to_lowercase(), caller)
    });
    let callers: serde_json::Map<_, _> = callers.into_iter().collect();
    json!({ "callers": callers })
}
