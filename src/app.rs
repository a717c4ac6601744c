//! What every long-running process needs: signals, services, health and metrics, open files, and the parts of a refresh.

pub mod admin;
pub mod lifecycle;
pub mod open_files;
pub mod refreshing;
pub mod services;
