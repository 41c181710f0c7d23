//! Background tasks of the coherent cache: fills, writes and repairs. They outlive the calls that
//! started them. A stopping replica waits for them.

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// Most background tasks. Beyond them, fills are skipped and writes are rejected.
const MAX_TASKS: usize = 10_000;

/// The background tasks of a replica.
#[derive(Debug, Clone, Default)]
pub(super) struct BackgroundTasks(TaskTracker);

impl BackgroundTasks {
    /// Whether another task may be spawned.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MAX_TASKS
    }

    /// Spawns a task.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.spawn(task)
    }

    /// Waits until no task is running.
    pub(super) async fn drain(&self) {
        self.0.close();
        self.0.wait().await;
        self.0.reopen();
    }
}
