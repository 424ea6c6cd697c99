/* Prints the time in µs of one autocommit insert into an SQLite table, synchronous=off.
 * inserts FOLDER ROWS: the database file is made in FOLDER and removed at the end. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void must(int ok, sqlite3 *db)
{
	if (ok)
		return;
	fprintf(stderr, "inserts: %s\n", sqlite3_errmsg(db));
	exit(1);
}

int main(int argc, char **argv)
{
	char path[4096];
	sqlite3 *db;
	sqlite3_stmt *insert;
	int rows = argc > 2 ? atoi(argv[2]) : 0;

	if (rows <= 0)
		return 2;
	snprintf(path, sizeof path, "%s/inserts-%d.db", argv[1], (int)getpid());
	must(sqlite3_open(path, &db) == SQLITE_OK, db);
	must(sqlite3_exec(db, "PRAGMA synchronous=off; CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)",
			  0, 0, 0) == SQLITE_OK, db);
	must(sqlite3_prepare_v2(db, "INSERT INTO t (word) VALUES ('a word')", -1, &insert, 0) == SQLITE_OK, db);
	double start = now();
	for (int i = 0; i < rows; i++) {
		must(sqlite3_step(insert) == SQLITE_DONE, db);
		sqlite3_reset(insert);
	}
	printf("%.3f\n", (now() - start) / rows);
	sqlite3_finalize(insert);
	sqlite3_close(db);
	return unlink(path);
}
