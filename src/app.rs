//! What any long-running process needs, whatever it does: signals, services, health and metrics, open files; and what whoever
//! refreshes needs.

pub mod admin;
pub mod lifecycle;
pub mod open_files;
pub mod refreshing;
pub mod services;
