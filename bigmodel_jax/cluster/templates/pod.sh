told= child= passed=
pass() { if [ -n "$child" ] && [ -z "$passed" ]; then passed=1; kill -TERM "$child"; fi; }
trap 'told=1; pass' TERM
{{command}} &
child=$!
if [ -n "$told" ]; then pass; fi # told before there was anyone to tell
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # a trapped signal ends `wait` early
    wait "$child"
    code=$?
done
# Told to go, and saved: that is not done yet, so the JobSet starts it again.
if [ "$code" = 0 ] && [ -n "$told" ]; then exit 143; fi
exit "$code"
