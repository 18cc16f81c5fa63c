//! What is done to records.
