"""TeacherSignal that are stored: written once, read in each epoch."""
