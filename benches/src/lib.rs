//! What the measurements share: processes, load, figures.

pub mod figures;
pub mod load;
pub mod peers;
pub mod processes;
