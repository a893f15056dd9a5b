//! The other host's view of the same tunnel, as its proxy tells it over the node channel (verb `probe`): what this
//! host cannot see by itself, above all the far PostgreSQL's slots and pg_hba.conf and the far clock.

/// What the far proxy sees. Nothing can be asked for yet, so there is no value of this type: the channel's answer
/// goes here, and `judge` looks at it where it now says "run doctor on the other host".
#[derive(Debug)]
pub(crate) enum Far {}

/// Asks the far proxy, where it can be asked.
pub(super) fn ask() -> Option<Far> {
    None
}
