//! Where records and alerts go.
