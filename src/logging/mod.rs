//! Who writes which line? The error log in gunicorn's format, the access log in uvicorn's.

pub mod access;
pub mod logger;
