//! Shared parts of the measurements: processes, load, figures.

pub mod figures;
pub mod load;
pub mod peers;
pub mod processes;
