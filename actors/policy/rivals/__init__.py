"""Offloading policies of other systems, and moespac's own, on one interface: for the simulator to compare."""
