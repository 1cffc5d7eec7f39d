"""Who gets which machines: one interface (`view`), one file a scheduler, and their names (`names`)."""
