"""Several teachers in one run.

A run has a list of teachers, each with a prompt template and rows of its own (`entries`). The list comes from
`teacher_config`, from the templates of one teacher (`prompt_mixture`), or from rows that the student is to answer as
before, which its own starting weights teach; `teachers_of_run` puts it together. A row has the completion of each of
its teachers ("completions"), or one completion at which their distributions are averaged ("mixture"): `preparation`
makes the rows, `teacher` scores them.
"""
