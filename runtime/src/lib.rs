//! What each process needs: clock, supervised tasks, shutdown, configuration, telemetry, health, listeners.
