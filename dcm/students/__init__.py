"""Students: many in lockstep, as networks or as adapters."""
