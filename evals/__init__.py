"""Measure how well a model does the job: `make evals` (docs/evals.md).

__main__ -> run -> attempt -> person            one attempt at a case, over HTTP, for a new user
                -> judge                        the evaluators of pydantic-evals
                -> records                      the files of a run, from which it goes on
         -> figures -> report -> pictures       the numbers, the text and the plots
cases, dates                                    the YAML files, and their days
domain                                          the part to replace with your own tools, with the files in cases/
"""
