"""What the commands do and print; `dicomai.cli` parses the call and comes here."""
