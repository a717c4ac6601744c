//! What any long-running process needs, whatever it does: signals, services, health and metrics, open files.

pub mod admin;
pub mod lifecycle;
pub mod open_files;
pub mod services;
