//! The routes of external authorization from their file.

use std::{path::Path, sync::Arc};

use parking_lot::RwLock;

use super::{Error, reloaded_file::ReloadedFile};
use crate::{
    ext_authz::{Routes, RoutesError},
    grpc::SharedRoutes,
    telemetry::EXT_AUTHZ_IN_USE,
};

/// The routes in use, and their file.
pub(super) struct RoutesFile {
    file: ReloadedFile,
    verifies_tokens: bool,
    routes: SharedRoutes,
}

impl RoutesFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Routes`].
    pub(super) async fn read(path: &Path, verifies_tokens: bool) -> Result<Self, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Routes {
            path: path.to_owned(),
            source,
        };
        let what = "file with the routes of Envoy";
        let file = ReloadedFile::read(path, what, EXT_AUTHZ_IN_USE).await;
        let file = file.map_err(|error| failed(error.into()))?;
        let routes = Routes::parse(&file.text, verifies_tokens);
        let routes = routes.map_err(|error| failed(error.into()))?;
        Ok(Self {
            routes: Arc::new(RwLock::new(Arc::new(routes))),
            verifies_tokens,
            file,
        })
    }

    /// The routes in use.
    pub(super) fn routes(&self) -> SharedRoutes {
        self.routes.clone()
    }

    /// Uses changed routes. Never ends.
    pub(super) async fn run_reload(&self) {
        let adopt = |text: &str| {
            let routes = Routes::parse(text, self.verifies_tokens)?;
            *self.routes.write() = Arc::new(routes);
            Ok::<_, RoutesError>(())
        };
        self.file.run_reload(adopt).await;
    }
}
