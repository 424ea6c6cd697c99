//! POLICY: what a stop means.
