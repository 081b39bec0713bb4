"""How fast everything is on this machine, part by part: `minidet bench`."""
