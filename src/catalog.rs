//! Every kind of component this binary has.

use tocsin_config::component::Catalog;

pub static CATALOG: Catalog = Catalog {
    sources: tocsin_sources::SOURCES,
    codecs: tocsin_sources::CODECS,
    operators: tocsin_operators::OPERATORS,
    sinks: tocsin_sinks::SINKS,
};
