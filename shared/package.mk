# How `sam build` packs Python, the same for the layer and for the functions. samconfig.toml has it build in the source
# directory, so paths within the checkout hold.
PYTHON313 ?= python3.13

# $(call copy_package,NAME,DIRECTORY): its sources, without bytecode of the machine's own Python.
copy_package = cp -R $(1) "$(2)/" && find "$(2)/$(1)" -name __pycache__ -prune -exec rm -rf {} +

# $(call compile,DIRECTORY,PLACE ON LAMBDA): imports take 2.5 to 3 times as long without bytecode, and Lambda can't write
# any. By hash and unchecked, because SAM dates every file 1980, which would make bytecode that goes by date stale.
compile = $(PYTHON313) -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$(1)" -p $(2) "$(1)"
