#!/bin/sh
# The handler of StreamFunction: the AWS Lambda Web Adapter starts it in place of the runtime's own client.
# PYTHONPATH names the layer, and LAMBDA_RUNTIME_DIR has the runtime's boto3. -S adds no other packages. -u writes each
# line at once: Lambda freezes a process, or kills it, without a flush.
export PYTHONPATH="$LAMBDA_TASK_ROOT:$PYTHONPATH:$LAMBDA_RUNTIME_DIR"
exec python3.13 -S -u -m chat.server "${AWS_LWA_PORT:-8080}"
