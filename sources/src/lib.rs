//! Where records come from, and how their bytes become fields.
