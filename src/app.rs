//! What every long-running process needs: signals, services, health and metrics, open files, what others may see of it, the parts of a refresh, and its
//! place among the others.

pub mod admin;
pub mod checks;
pub mod connections;
pub mod database;
pub mod exposed;
pub mod hardening;
pub mod lifecycle;
pub mod open_files;
pub mod presence;
pub mod refreshing;
pub mod services;
