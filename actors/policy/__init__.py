"""Every decision of the system, pure: numpy and OR-Tools; no Ray, gRPC, threads, clock or torch."""
