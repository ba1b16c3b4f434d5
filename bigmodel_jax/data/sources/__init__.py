"""Sources of records: files, data sets of libraries, and generated records."""
