# Writes OUT, a header with the commit of SOURCE_DIR, when it has changed. Runs at every build: a commit that was found when CMake
# configured would soon be an old one.
execute_process(COMMAND git -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define KVBENCH_COMMIT \"${commit}\"\n")
