"""Where studies are fetched from: C-FIND, C-MOVE and C-GET SCU."""
