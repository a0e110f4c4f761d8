"""The package of a plugin, as ``flowfactory plugins new`` writes it from the files beside this room's code."""
