"""One file per dataset format; each turns a row into a record."""
